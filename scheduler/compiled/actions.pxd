cimport cython

cdef class Actions:
    cdef public long long dispatched
    cdef public long long requests
    cdef public long long dropped
    cdef public long long[::1] model
    cdef public long long[::1] priority
    cdef public long long[::1] gpu
    cdef public long long[::1] size
    cdef public long long[::1] batch
    cdef public long long[::1] exec_at
    cdef public long long[::1] finish_at
    cdef public unsigned long long[::1] key
    cdef public unsigned long long[::1] deadline
    cdef public unsigned long long[::1] drop_key
    cdef public long long[::1] drop_model
    cdef public unsigned long long[::1] drop_deadline
    cdef public long long[::1] drop_due
    cdef public long long[::1] drop_reason

    cdef public tuple batch_views
    cdef public tuple request_views
    cdef public tuple drop_views

    cpdef void clear(self) noexcept
    cpdef long long open_batch(self, long long model, long long priority, long long gpu, long long size, long long batch, long long exec_at, long long finish_at) except -1
    cpdef void drop(self, unsigned long long key, long long model, long long deadline, long long reason) except *
    @cython.locals(i="long long", start="long long")
    cpdef long long open_drops(self, long long n, long long model, long long reason) except -1
    cdef _grow_batches(self, long long more)
    cdef _grow_requests(self, long long more)
    cdef _grow_drops(self, long long more)
