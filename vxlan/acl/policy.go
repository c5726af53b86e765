package acl

import (
	"errors"
	"strings"
)

// MaxRules bounds what a configuration may give one port. Compile takes more.
const MaxRules = 4096

// What Judge and Explain return when no rule decided.
const (
	// Default: no rule matched.
	Default = -1
	// Always: the packet is of those that no policy judges.
	Always = -2
)

// Policy is what a port's packets are judged by. The zero value denies everything.
type Policy struct {
	// Default is the verdict on what no rule matches. The zero value denies.
	Default Verdict `json:"default"`
	// Rules, of which the first that matches decides.
	Rules []Rule `json:"rules,omitempty"`
}

// ParsePolicy reads a policy: a rule on each line, and at most one line "default allow" or "default deny". Without one the default is to deny.
// A # begins a comment. All that is wrong is told at once, each as a *SyntaxError.
func ParsePolicy(text string) (Policy, error) {
	var policy Policy
	var errs []error
	said := 0 // the line of the default
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSuffix(line, "\r")
		line, _, _ = strings.Cut(line, "#")
		p := newParser(line)
		switch {
		case len(p.words) == 0:
			continue
		case said > 0 && p.words[0].text == "default":
			p.fail(p.words[0].column, "the default was given before, in line %d: keep one", said)
		case p.accept("default"):
			said = i + 1
			policy.Default = p.verdict()
			p.done()
		default:
			policy.Rules = append(policy.Rules, p.rule())
		}
		if p.err != nil {
			p.err.Line = i + 1
			errs = append(errs, p.err)
		}
	}
	if len(errs) > 0 {
		return Policy{}, errors.Join(errs...)
	}
	return policy, nil
}

// String writes the policy as ParsePolicy reads it.
func (p Policy) String() string {
	var b strings.Builder
	for i := range p.Rules {
		b.WriteString(p.Rules[i].String() + "\n")
	}
	b.WriteString("default " + p.Default.String() + "\n")
	return b.String()
}

// Explanation is the answer to "would this packet pass, and by which rule?"
type Explanation struct {
	Verdict Verdict `json:"verdict"`
	Rule    int     `json:"rule"`           // index in the policy; -1: the default, -2: what no policy judges
	Text    string  `json:"text,omitempty"` // the rule's
	// Answers is set for a packet that is denied, but may be the reply to one that is not: it passes while that flow lasts.
	Answers *Answer `json:"answers,omitempty"`
}

// Answer is the flow that a packet may be a reply to, and the rule that allows it.
type Answer struct {
	Direction Direction `json:"direction"`
	Packet    string    `json:"packet"`
	Rule      int       `json:"rule"` // as in Explanation
	Text      string    `json:"text,omitempty"`
}

// Explain judges a packet one rule after the other. What it says is what Judge says.
func Explain(p Policy, t *Tuple, d Direction) Explanation {
	e := explain(p, t, d)
	if e.Verdict == Allow {
		return e
	}
	if asked, ok := t.Answers(); ok {
		if o := explain(p, &asked, d.Opposite()); o.Verdict == Allow {
			e.Answers = &Answer{d.Opposite(), asked.String(), o.Rule, o.Text}
		}
	}
	return e
}

func explain(p Policy, t *Tuple, d Direction) Explanation {
	if t.always() {
		return Explanation{Verdict: Allow, Rule: Always}
	}
	for i := range p.Rules {
		if r := &p.Rules[i]; r.Direction == d && r.Matches(t) {
			return Explanation{Verdict: r.Verdict, Rule: i, Text: r.String()}
		}
	}
	return Explanation{Verdict: p.Default, Rule: Default}
}

// Matches reports whether a packet is what the rule speaks of, but for its direction. It is what the tables of a Compiled are held
// against, and the definition of a rule's meaning.
func (r *Rule) Matches(t *Tuple) bool {
	switch r.Subject {
	case OfEther:
		return t.EtherType == r.Number
	case AnyEther:
		return !t.isIP()
	}
	if !t.isIP() || !r.speaksOf(t.EtherType == etherIPv6) {
		return false
	}
	if r.Subject == OfProtocol && r.Number != uint16(t.Protocol) {
		return false
	}
	if r.From.IsValid() && !r.From.Contains(t.source()) || r.To.IsValid() && !r.To.Contains(t.destination()) {
		return false
	}
	if r.isTransport() && t.Bare {
		return false
	}
	in := func(p Ports, n uint16) bool { return p.IsAny() || p.First <= n && n <= p.Last }
	return in(r.FromPort, t.SourcePort) && in(r.ToPort, t.DestinationPort) &&
		(!r.ICMP.HasType || r.ICMP.Type == t.Type) && (!r.ICMP.HasCode || r.ICMP.Code == t.Code)
}
