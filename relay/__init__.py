"""The relay: forwards sealed packets between members that no direct path connects. `edgerelay` on the command line."""
