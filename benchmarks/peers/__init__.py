"""The peers: other ways from a frame and boxes to landmarks, each used as its own documentation says."""
