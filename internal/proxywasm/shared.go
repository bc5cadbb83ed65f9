package proxywasm

// sharedValue is one entry of a plugin's shared data. Its cas is never 0, which a
// guest writes to say "whatever is there".
type sharedValue struct {
	value []byte
	cas   uint32
}

func hostGetShared(c hostCall) status {
	key, ok := c.bytes(0)
	if !ok {
		return statusInvalidMemoryAccess
	}
	v, found := c.p.shared[string(key)]
	if !found {
		return statusNotFound
	}
	if st := c.give(2, v.value); st != statusOK {
		return st
	}
	return c.result(4, v.cas)
}

func hostSetShared(c hostCall) status {
	key, ok := c.bytes(0)
	value, ok2 := c.bytes(2)
	if !ok || !ok2 {
		return statusInvalidMemoryAccess
	}
	old, found := c.p.shared[string(key)]
	if cas := c.u32(4); cas != 0 && cas != old.cas {
		return statusCasMismatch
	}
	size := c.p.sharedSize + len(value) - len(old.value)
	if !found {
		size += len(key)
	}
	if size > maxSharedBytes {
		return statusInternalFailure
	}
	c.p.sharedSize = size
	c.p.shared[string(key)] = sharedValue{value: value, cas: max(old.cas+1, 1)}
	return statusOK
}

// metric is one that the guest defined; its id is its place in Plugin.metrics.
type metric struct {
	kind  uint32 // 0 counter, 1 gauge, 2 histogram
	name  string
	value int64
}

func hostDefineMetric(c hostCall) status {
	name, ok := c.bytes(1)
	if !ok {
		return statusInvalidMemoryAccess
	}
	if c.u32(0) > 2 {
		return statusBadArgument
	}
	for id, m := range c.p.metrics {
		if m.name == string(name) && m.kind == c.u32(0) {
			return c.result(3, uint32(id))
		}
	}
	if len(c.p.metrics) == maxMetrics {
		return statusInternalFailure
	}
	c.p.metrics = append(c.p.metrics, metric{kind: c.u32(0), name: string(name)})
	return c.result(3, uint32(len(c.p.metrics)-1)) //nolint:gosec // as above
}

func (c hostCall) metric() *metric {
	if id := c.u32(0); int(id) < len(c.p.metrics) {
		return &c.p.metrics[id]
	}
	return nil
}

func hostIncrementMetric(c hostCall) status {
	m := c.metric()
	if m == nil {
		return statusBadArgument
	}
	by := int64(c.args[1]) //nolint:gosec // an i64
	if m.kind == 2 || (m.kind == 0 && by < 0) {
		return statusBadArgument
	}
	m.value += by
	return statusOK
}

func hostRecordMetric(c hostCall) status {
	m := c.metric()
	if m == nil {
		return statusBadArgument
	}
	value := int64(c.args[1]) //nolint:gosec // an i64
	if m.kind == 0 {
		value += m.value // Envoy adds what is recorded of a counter
	}
	m.value = value
	return statusOK
}

func hostGetMetric(c hostCall) status {
	m := c.metric()
	if m == nil {
		return statusBadArgument
	}
	if !c.mem.WriteUint64Le(c.u32(1), uint64(m.value)) { //nolint:gosec // as the ABI has it
		return statusInvalidMemoryAccess
	}
	return statusOK
}
