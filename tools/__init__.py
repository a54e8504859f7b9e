"""Generators of documentation, dashboards, alert rules and manifests."""
