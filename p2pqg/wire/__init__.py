"""What travels: messages as frames, tensors as bytes, checksums. Bytes from a peer are checked here first."""
