"""What a configuration will compile, hold and cost, worked out on paper: no device, no torch, no weight read.

`plan.make_plan` puts the pieces together: `model_source` (what is to be planned), `instances` (where), `weights` and
`memory` (bytes by kind on each core), `suggest` (degree, batch and length for an instance), `traffic` (bucket ladders
from a histogram of lengths) and `report` (the plan as JSON types). The target answers for itself: see `neuron.target`.
"""
