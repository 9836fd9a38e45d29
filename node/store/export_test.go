package store

// Abandon lets a test end a store as the death of its process would.
func (s *Store) Abandon() { s.abandon() }
