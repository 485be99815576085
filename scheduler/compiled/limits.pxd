# The constants that compiled modules use, as C compilers know them: those of core/limits.py again, and
# PLAIN as it is in plain.py beside this file. (A C variable would be read anew after every store.)
#
# The sources import the constants as Python does, which assigns to these names: a compound literal takes
# the assignment, and is as new at its next use. A test compares the values.
cdef extern from *:
    """
    #define SYMPHONY_PRIORITIES ((long long){4})
    #define SYMPHONY_SLOTS ((long long){65536})
    #define SYMPHONY_LAST_TIME ((long long){4611686018427387904})
    #define SYMPHONY_LONGEST ((long long){281474976710656})
    #define SYMPHONY_NEVER ((long long){0x7fffffffffffffff})
    #define SYMPHONY_MOST_GPUS ((long long){1048576})
    #define SYMPHONY_MOST_MODELS ((long long){1048576})
    #define SYMPHONY_LARGEST_BATCH ((long long){4096})
    #define SYMPHONY_MOST_QUEUED ((long long){1073741824})
    #define SYMPHONY_TYPES ((long long){64})
    #define SYMPHONY_DEPTH ((long long){4})
    #define SYMPHONY_ABSENT ((long long){0})
    #define SYMPHONY_LIVE ((long long){1})
    #define SYMPHONY_DRAINING ((long long){2})
    #define SYMPHONY_SAMPLE_NS ((long long){50000000})
    #define SYMPHONY_SAMPLES ((long long){100})
    #define SYMPHONY_SMALLEST_RING ((long long){16})
    #define SYMPHONY_APART ((long long){20})
    #define SYMPHONY_LARGE_RING ((long long){512})
    #define SYMPHONY_AHEAD ((long long){32})
    #define SYMPHONY_MOST_FETCHED ((long long){128})
    #define SYMPHONY_FIELDS ((long long){8})
    #define SYMPHONY_UNTIL ((long long){0})
    #define SYMPHONY_STOP ((long long){1})
    #define SYMPHONY_TAIL ((long long){2})
    #define SYMPHONY_LAST ((long long){3})
    #define SYMPHONY_BASE ((long long){4})
    #define SYMPHONY_MASK ((long long){5})
    #define SYMPHONY_HEAD ((long long){6})
    #define SYMPHONY_FIRST ((long long){7})
    #define SYMPHONY_TICKS ((long long){4096})
    #define SYMPHONY_EXPIRED ((long long){1})
    #define SYMPHONY_WINDOW ((long long){2})
    #define SYMPHONY_FULL ((long long){3})
    #define SYMPHONY_UNKNOWN ((long long){4})
    #define SYMPHONY_OUT_OF_RANGE ((long long){5})
    #define SYMPHONY_DUPLICATE ((long long){6})
    #define SYMPHONY_UNSERVED ((long long){7})
    #define SYMPHONY_HANDED_BACK ((long long){8})
    #define SYMPHONY_PLAIN ((int){0})
    """
    long long PRIORITIES "SYMPHONY_PRIORITIES"
    long long SLOTS "SYMPHONY_SLOTS"
    long long LAST_TIME "SYMPHONY_LAST_TIME"
    long long LONGEST "SYMPHONY_LONGEST"
    long long NEVER "SYMPHONY_NEVER"
    long long MOST_GPUS "SYMPHONY_MOST_GPUS"
    long long MOST_MODELS "SYMPHONY_MOST_MODELS"
    long long LARGEST_BATCH "SYMPHONY_LARGEST_BATCH"
    long long MOST_QUEUED "SYMPHONY_MOST_QUEUED"
    long long TYPES "SYMPHONY_TYPES"
    long long DEPTH "SYMPHONY_DEPTH"
    long long ABSENT "SYMPHONY_ABSENT"
    long long LIVE "SYMPHONY_LIVE"
    long long DRAINING "SYMPHONY_DRAINING"
    long long SAMPLE_NS "SYMPHONY_SAMPLE_NS"
    long long SAMPLES "SYMPHONY_SAMPLES"
    long long SMALLEST_RING "SYMPHONY_SMALLEST_RING"
    long long APART "SYMPHONY_APART"
    long long LARGE_RING "SYMPHONY_LARGE_RING"
    long long AHEAD "SYMPHONY_AHEAD"
    long long MOST_FETCHED "SYMPHONY_MOST_FETCHED"
    long long FIELDS "SYMPHONY_FIELDS"
    long long UNTIL "SYMPHONY_UNTIL"
    long long STOP "SYMPHONY_STOP"
    long long TAIL "SYMPHONY_TAIL"
    long long LAST "SYMPHONY_LAST"
    long long BASE "SYMPHONY_BASE"
    long long MASK "SYMPHONY_MASK"
    long long HEAD "SYMPHONY_HEAD"
    long long FIRST "SYMPHONY_FIRST"
    long long TICKS "SYMPHONY_TICKS"
    long long EXPIRED "SYMPHONY_EXPIRED"
    long long WINDOW "SYMPHONY_WINDOW"
    long long FULL "SYMPHONY_FULL"
    long long UNKNOWN "SYMPHONY_UNKNOWN"
    long long OUT_OF_RANGE "SYMPHONY_OUT_OF_RANGE"
    long long DUPLICATE "SYMPHONY_DUPLICATE"
    long long UNSERVED "SYMPHONY_UNSERVED"
    long long HANDED_BACK "SYMPHONY_HANDED_BACK"
    bint PLAIN "SYMPHONY_PLAIN"
