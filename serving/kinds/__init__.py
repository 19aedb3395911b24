"""Output kinds: one file each, whose `Output` is the entry of the catalog and all that the chain does with it.

A kind is found by its file's name. To add one, add its file, and a test of it in tests/serving/kinds.
"""
