"""What a device runs on its pieces where the local op is not the op itself; `common` says how such functions are made."""
