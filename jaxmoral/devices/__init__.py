"""Which array is on which device, and several processes as one program."""
