-- What a module asks for, as JSON; none if its component does not say.
ALTER TABLE modules ADD COLUMN asks TEXT;
