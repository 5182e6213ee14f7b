"""Tests of the data tools."""
