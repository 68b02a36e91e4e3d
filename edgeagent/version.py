"""Which release this is."""

VERSION = "0.1.0"
# 2026-11-01: on a device without a clock, time begins here. Moved forward with each release.
BUILD_TIME_S = 1_793_491_200
