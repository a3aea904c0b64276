"""Attacks dsync: real processes at work, real servers, real harm, and then what they wrote is read.

Each scenario is one primitive under one fault, from a printed seed.
"""
