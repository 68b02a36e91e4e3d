"""Suites in which things go wrong: power that fails at any write, wrong clocks, full disks, cables, dead servers."""
