"""Suites for any rig, as pytest files: `edgehil run NAME --rig FILE`."""
