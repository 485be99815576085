"""The control plane: membership, snapshot, and the pub/sub control channel."""
