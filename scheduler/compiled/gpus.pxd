cimport cython
from scheduler.compiled.heap cimport Heap
from scheduler.compiled.numbers cimport Numbers
from scheduler.compiled.limits cimport ABSENT, DEPTH, DRAINING, LIVE


cdef class Gpus:
    cdef public long long capacity
    cdef public long long count
    cdef public long long overdue_ns
    cdef public signed char[::1] state
    cdef public signed char[::1] stuck
    cdef public long long[::1] cls
    cdef public long long[::1] free_at
    cdef public long long[::1] margin
    cdef public long long[::1] out_head
    cdef public long long[::1] out_count
    cdef public long long[::1] out_batch
    cdef public long long[::1] out_exec
    cdef public long long[::1] out_len
    cdef public long long classes
    cdef public long long[::1] class_type
    cdef public long long[::1] class_live
    cdef public list class_models
    cdef public long long models
    cdef public signed char[::1] holds
    cdef public list idle
    cdef public list busy
    cdef public signed char[::1] claimed
    cdef public list aside
    cdef public long long spare
    cdef public long long guard_ns

    cpdef reserve_gpus(self, long long capacity)
    cpdef reserve_models(self, long long models)
    cpdef _fill_holds(self)
    cpdef long long class_of(self, long long gpu_type, models) except -1
    @cython.locals(heap=Heap, idle=Numbers, busy=Heap)
    cpdef join(self, long long gpu, long long c, long long now)
    cpdef leave(self, long long gpu)
    cpdef drain(self, long long gpu)
    cpdef move(self, long long gpu, long long c, long long now)
    @cython.locals(heap=Heap, idle=Numbers, busy=Heap)
    cdef void _unlist(self, long long gpu) noexcept
    @cython.locals(heap=Heap, idle=Numbers, busy=Heap)
    cdef void _list(self, long long gpu, long long now) noexcept
    @cython.locals(heap=Heap, idle=Numbers, busy=Heap)
    cpdef void settle(self, long long now) noexcept
    cpdef bint overdue(self, long long gpu, long long now) noexcept
    @cython.locals(heap=Heap, idle=Numbers, busy=Heap)
    cpdef long long pick(self, long long now, long long model, long long reach, long long tried) noexcept
    @cython.locals(idle=Numbers)
    cdef long long _first_idle(self, long long c, long long now) noexcept
    cdef void _skip_overdue(self, Heap heap, long long now) noexcept
    cpdef bint claim(self, long long model, long long tried) noexcept
    cpdef void release(self) noexcept
    @cython.locals(idle=Numbers)
    cpdef set_aside(self, long long gpu)
    @cython.locals(heap=Heap, idle=Numbers, entry="long long", gpu="long long")
    cpdef restore(self)
    @cython.locals(heap=Heap, idle=Numbers, busy=Heap)
    cpdef long long taker_type(self, long long now, long long model, long long tried) noexcept
    @cython.locals(heap=Heap, idle=Numbers, busy=Heap)
    cpdef long long next_free(self, long long model, long long after) noexcept
    cpdef bint room(self, long long now, long long model, long long guard) noexcept
    @cython.locals(heap=Heap, idle=Numbers)
    cpdef long long free_by(self, long long now, long long model, long long until, long long enough) noexcept
    @cython.locals(heap=Heap, idle=Numbers, busy=Heap)
    cpdef void take(self, long long gpu, long long batch, long long exec_at, long long length) noexcept
    cpdef bint give_back(self, long long gpu, long long batch, long long finished, long long now) noexcept
