cdef extern from *:
    """
    #if defined(__GNUC__)
    #define SYMPHONY_FETCH(p) __builtin_prefetch(p, 1)
    #else
    #define SYMPHONY_FETCH(p) ((void)(p))
    #endif
    """
    void prefetch "SYMPHONY_FETCH"(const void *) noexcept nogil

cdef inline void fetch(const unsigned long long[::1] column, long long i) noexcept:
    prefetch(&column[i])
