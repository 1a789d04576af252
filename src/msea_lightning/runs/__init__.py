"""Run folders: what they hold, which run is which, locks."""
