/* lwIP includes this header, and uses nothing from it here. */
#include <stddef.h>
