"""A sweep over 367 timm and torchvision models: what is traced, operated and proved of each (`python -m tests.zoo`)."""
