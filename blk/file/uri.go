package file

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"
)

// ErrURI is wrapped by every refusal of a URI.
var ErrURI = errors.New("bad file URI")

// Parse takes the path out of file:///path.
func Parse(uri string) (string, error) {
	bad := func(why string) (string, error) { return "", fmt.Errorf("%w %q: %s", ErrURI, uri, why) }
	u, err := url.Parse(uri)
	switch {
	case err != nil:
		var e *url.Error
		if errors.As(err, &e) {
			err = e.Err
		}
		return bad(err.Error())
	case u.Scheme != "file":
		return bad("the scheme must be file: write file:///path")
	case u.Host != "" && u.Host != "localhost":
		return bad("there is a host between // and the path: write file:///path")
	case u.Opaque != "" || !strings.HasPrefix(u.Path, "/"):
		return bad("the path must be absolute: write file:///path")
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(uri, "#"):
		return bad("nothing may follow the path; write %23 for # and %3F for ? in it")
	case strings.ContainsRune(u.Path, 0):
		return bad("the path contains a zero byte: remove it")
	case strings.HasSuffix(u.Path, "/"):
		return bad("the path names a directory: name a file or a block device")
	}
	return path.Clean(u.Path), nil
}
