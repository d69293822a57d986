"""Run exported Jakiro engines: draft a tree, verify it in one pass, keep what the target agrees with."""
