"""What a configuration will compile, hold and cost, worked out on paper: no device, no torch, no weight read.

`plan.make_plan` puts the pieces together: `model_source` (what is to be planned), `architectures` (who can run it),
`instances` (where), `weights` and `memory` (bytes by kind on each core), `programs` (what is compiled), `suggest`
(degree, batch and length for an instance) and `traffic` (bucket ladders from a histogram of lengths).
"""
