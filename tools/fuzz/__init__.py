"""Coverage-guided fuzzing of every parser (`make fuzz`), and the rigs that hold playout and session to their rules.

`targets` needs nothing but the product, so that the tests use it too; `child` is the only module that imports atheris.
"""
