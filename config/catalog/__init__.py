"""The catalog: every data set and model, typed, from one YAML file each."""
