cimport cython
from scheduler.compiled.actions cimport Actions
from scheduler.compiled.gpus cimport Gpus
from scheduler.compiled.heap cimport Heap
from scheduler.compiled.lanes cimport Lanes
from scheduler.compiled.models cimport Models
from scheduler.compiled.queues cimport Queues
from scheduler.compiled.limits cimport (
    EXPIRED, FIELDS, FIRST, LARGEST_BATCH, LAST_TIME, LONGEST, MOST_QUEUED, PRIORITIES, SAMPLE_NS, SLOTS,
    TYPES, UNSERVED, WINDOW,
)


cdef class Window(Lanes):
    cdef public long long margin
    cdef public long long horizon
    cdef public long long batches
    cdef public long long clock_steps
    cdef public long long submitted
    cdef public long long ran
    cdef public long long ran_over
    cdef public long long ran_squares
    cdef public long long[::1] ended
    cdef public long long strange_completions
    cdef public Gpus gpus
    cdef public Actions actions
    cdef public long long[::1] fast
    cdef public long long[::1] fast_at
    cdef public signed char[::1] steady
    cdef public unsigned long long[::1] last_key
    cdef public long long[::1] type_margin
    cdef public list parked
    cdef public bint refused
    cdef public bint skipped

    cdef long long _clock(self, long long now) noexcept
    @cython.locals(ready=Heap)
    cdef void _run(self, long long now) except *
    cdef void _pass_over(self, long long lane, long long now) except *
    @cython.locals(ready=Heap)
    cdef void _match(self, long long priority, long long now) except *
    @cython.locals(waits=bint)
    cdef bint _serve(self, long long lane, long long gpu, long long now) except -1
    cdef void _give_up(self, long long lane, long long at, long long now, long long free, long long margin) except *
    cdef void _drop(self, long long lane, long long n, long long reason) except *
    @cython.locals(ready=Heap)
    cdef void _reform(self, long long lane, long long now) except *
    cdef long long _taker(self, long long lane, long long model, long long now) noexcept
    cdef bint _bears(self, long long lane, long long model, long long kind, long long now, long long free, long long margin) noexcept
    cdef long long _reduce(self, long long lane, long long model, long long kind, long long now) except? -9
    cdef long long _expire(self, long long lane, long long model, long long now) except? -9
