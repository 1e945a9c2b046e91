"""The HTTP interface: for operators' programs, and for inference clusters that say how busy they are."""
