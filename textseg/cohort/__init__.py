"""Cohorts: many scans, each segmented once, and nothing lost when a run is killed or a scan is bad."""
