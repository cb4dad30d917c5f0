"""Outputs of a given form: JSON schemas, regular expressions, choices, grammars, structural tags.

    front    `GrammarPreparer`: limits; verdicts remembered; unknown constraints to a sandbox -> the request's grammar
    sandbox  a process that may crash: builds the grammar, compiles it, within time and memory
    core     `GrammarManager`: compiles what the sandbox let through, in a thread; a matcher for each request

Grammars come from anybody. What overflows a stack or the memory, or takes too long, does so in the sandbox and is an
error of that request. llguidance does the compiling and the matching; its matchers hold no lock of Python's while they
work, and their limits (`limits.py`) bound each step.
"""
