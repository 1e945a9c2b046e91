"""Whole fleets: hosts as network namespaces of one machine, joined by real tunnels, cut and mended by the tests."""
