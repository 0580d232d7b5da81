"""The sample site in Django, laid out as its start command would."""
