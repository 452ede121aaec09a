"""SSD detectors on operated backbones: the parts that the example programs share."""
