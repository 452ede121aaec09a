"""SSD detectors on operated backbones.

To read in this order: configurations, backbones, neck, model, counting, tables; then data,
training, train, evaluate, detect, demonstration. `python -m examples.ssd` lists the programs.
"""
