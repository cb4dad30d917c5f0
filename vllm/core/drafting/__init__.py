"""How many tokens are worth drafting, from the acceptance seen and from the measured time of steps.

A step that drafts k tokens for a row brings the row

    t(k) = 1 + p1 + p1 p2 + ... + p1 ... pk

tokens. pj is the share of drafts at position j that were accepted, among those whose earlier drafts all were
(`acceptance.AcceptanceRates`). Where drafts are looked up, only a share f of the text has any
(`acceptance.FoundShare`), and that share passes in fewer steps: a token of text takes s(k) = f / t(k) + 1 - f steps,
and a share f / t(k) / s(k) of the steps drafts. The controller chooses the count with the most tokens per second, and
none where checking further tokens costs more than they bring.

`cost.StepCost` holds the seconds of a step, by rows (in powers of two) and by mean drafts per row. Between two measured
means it interpolates; beyond the largest it assumes half the slope, so that more is tried. A low quantile of the
samples counts, since a disturbance can only make a step longer. The time in which a draft model catches up with a
prompt is spread over the steps that follow.

The controller measures the counts beside the best one, and 0, again from time to time (a probe). All probes together
cost about one per cent: a count that would lose a share s of a step's time waits for at least `regret_steps * s` steps;
for less while it has few samples, and for longer if a draft model must first read for it. A probe whose drafts were all
accepted is followed by another. No step drafts more than twice what was measured. Where nothing pays, a draft model is
tried with one row alone, the one that has drafted most, so that it need not read the prompts of all rows.

`budget.Credit` bounds the cost of wrong estimates. Each number of rows has a credit, counted in plain steps. A step
with drafts adds what it was worth and subtracts its own time; a plain step adds `allowance`. Without credit nothing is
drafted. (A bandit that must keep a share of its baseline: Wu et al., Conservative Bandits, 2016.)

A request whose own drafts fail, beyond what chance explains, gets none for a while that doubles each time
(`acceptance.RequestDrafts`).

The number of drafts never changes the text: verification samples what would have been sampled without drafts.
`tests/core/test_speculation.py` simulates texts and machines, and shows what the numbers of `tuning` are for.
"""
