cimport cython
from scheduler.compiled.actions cimport Actions
from scheduler.compiled.heap cimport Heap
from scheduler.compiled.machine cimport Core
from scheduler.compiled.numbers cimport Numbers
from scheduler.compiled.limits cimport DEPTH, NEVER, TICKS


cdef class Replay:
    cdef public Core core
    cdef public long long control
    cdef public long long data
    cdef public long long report
    cdef public long long tick
    cdef public const long long[::1] control_extra
    cdef public const long long[::1] length_ppm
    cdef public long long mask
    cdef public Heap reports
    cdef public long long turn
    cdef public Numbers turns
    cdef public long long[::1] first
    cdef public long long[::1] following
    cdef public Numbers due
    cdef public long long[::1] free
    cdef public long long[::1] out_head
    cdef public long long[::1] out_count
    cdef public long long[::1] out_batch
    cdef public long long[::1] out_end
    cdef public long long seen
    cdef public long long batches
    cdef public long long[::1] decided
    cdef public long long[::1] start
    cdef public long long[::1] end
    cdef public long long events
    cdef public unsigned int[::1] back_gpu
    cdef public unsigned long long[::1] back_batch
    cdef public long long[::1] back_end

    cpdef clear(self)
    @cython.locals(
        t="const long long[:]", m="const unsigned int[:]", d="const long long[:]",
        k="const unsigned long long[:]", now="long long", i="long long", j="long long", core=Core,
    )
    cpdef run(self, at, model, deadline, key)
    cpdef until(self, long long now)
    cpdef finish(self)
    @cython.locals(core=Core, timer="long long", now="long long", gpu="long long", first="long long")
    cdef _until(self, long long limit)
    @cython.locals(due="long long", at="long long")
    cdef long long _next_report(self) noexcept
    @cython.locals(first="long long")
    cdef long long _back(self, long long gpu) noexcept
    @cython.locals(due="long long", turn="long long", at="long long")
    cdef void _expect(self, long long gpu) noexcept
    @cython.locals(at="long long", gpu="long long")
    cdef void _gather(self, long long now) noexcept
    @cython.locals(due=Numbers, n="long long", gpu="long long", first="long long")
    cdef _report_all(self, long long now)
    @cython.locals(actions=Actions)
    cdef _execute(self, long long now)
