"""Durable streams: the store contract and its back ends, streams in memory, and the journal that commits."""
