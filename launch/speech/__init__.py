"""Of speech: from the fields of a config to transducers, to what they recognise, and to its figures."""
