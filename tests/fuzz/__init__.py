"""What takes in other people's bytes, given bytes that nobody would send: targets, their oracles, and a corpus."""
