"""Scoring rules as pure functions; which benchmark uses which is said in the benchmark's own file.

``standard`` rules are those of lmms-eval, from whose public results people know their numbers; a few of VLMEvalKit's
are here where the two differ. The rules of the VisPCO repository, which are looser, live in :mod:`.vispco` alone.
"""
