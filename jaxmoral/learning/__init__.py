"""Agents, their updates, the loop around them, and what is kept of a run."""
