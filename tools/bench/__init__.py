"""The figures: each measured here and now, beside its peer's from the same run where it has a peer."""
