"""What the machine gives: files, tensors on disk, the device, speed, progress, tables of numbers."""
