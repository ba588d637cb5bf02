"""The numbered migrations, one module each, in the order of their names; applied by :mod:`sorna.store.migrate`."""
