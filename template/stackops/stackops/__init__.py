"""Starts, checks and looks after the MLflow server of this stack."""
