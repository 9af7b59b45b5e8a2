"""Studies over several trainings: ablations, the first difference of two runs, the leak audit."""
