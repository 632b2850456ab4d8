"""What a job's report is made of: pure functions from predictions and references to numbers.

Nothing here needs torch. `measure`, `comparison`, `worst_rows`, `report` and `markdown` are light;
each family of metrics and `pictures` import the library that does their maths (scikit-learn,
sacrebleu, matplotlib …), so that a process pays only for what its job needs.
"""
