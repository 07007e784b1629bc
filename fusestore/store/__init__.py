"""What a store is made of: layout, manifests, receipts, arrays, leases, registry, inventory."""
