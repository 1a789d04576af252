"""Options, errors, and the options of each command (:mod:`.roots`)."""
