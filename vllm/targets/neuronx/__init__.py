"""The `neuronx` target: drives NxD Inference on NeuronCores. See docs/neuronx.md.

`library.py` alone imports the library, after `environment.py` has set what the runtime reads at its first import.
"""
