package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/vxlan/acl"
)

func (c *command) acl() *cobra.Command {
	cmd := &cobra.Command{
		Use: "acl", Short: "Show, change and try the rules that a port's packets are judged by", Args: cobra.NoArgs,
		Long: "acl shows, changes and tries a port's rules, its security group. Of the rules, the first that matches decides:\n\n" +
			"  allow|deny in|out [PROTOCOL] [from PREFIX|any [port N[-N]]] [to PREFIX|any [port N[-N]]] [type N [code N]]\n\n" +
			"What goes to the guest is in, what comes from it is out. PROTOCOL is any, tcp, udp, icmp, icmpv6, proto N, ether 0xNNNN or\n" +
			"ether any. Replies to what was allowed are allowed.",
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("acl what? show, set, remove or test")}
		},
	}
	cmd.AddCommand(c.aclShow(), c.aclSet(), c.aclRemove(), c.aclTest())
	return cmd
}

func (c *command) aclShow() *cobra.Command {
	return &cobra.Command{
		Use: "show PORT", Short: "Show a port's rules and how many packets each decided about", Args: cobra.ExactArgs(1),
		ValidArgsFunction: c.names(control.KindPort),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *api.Client) error {
				s, err := client.ACL(ctx, args[0])
				if err != nil {
					return err
				}
				return c.print(s, func(t *table) { drawACL(t, s) })
			})
		},
	}
}

func drawACL(t *table, s control.ACLStatus) {
	t.head("RULE", "PACKETS", "TEXT")
	for i, r := range s.Rules {
		t.row(i, count(r.Packets), r.Rule)
	}
	t.row("default", count(s.DefaultPackets), s.Default)
	t.row("always", count(s.AlwaysPackets), "allow ARP, RARP and IPv6 neighbour discovery")
}

func (c *command) aclSet() *cobra.Command {
	var file, otherwise string
	var rules []string
	cmd := &cobra.Command{
		Use: "set PORT (-f FILE | --rule RULE ...)", Short: "Give a port other rules", Args: cobra.ExactArgs(1),
		Long: "set gives a port other rules, in force at once for running flows, too. The guest stays connected. A file has a rule on each line,\n" +
			"and \"default allow\" or \"default deny\"; # begins a comment. As with all changes the configuration's file stays as it is.",
		ValidArgsFunction: c.names(control.KindPort),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case (file == "") == (len(rules) == 0):
				return usageError{errors.New("set which rules? name a file with -f, or give --rule, once for each")}
			case file != "" && cmd.Flags().Changed("default"):
				return usageError{errors.New("--default is for --rule: the file says its own")}
			}
			policy, err := c.policy(file, rules, otherwise)
			if err != nil {
				return err
			}
			return c.with(cmd, func(ctx context.Context, client *api.Client) error {
				return c.changed(client.PutACL(ctx, args[0], policy))
			})
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "file of the rules; - is the standard input")
	cmd.Flags().StringArrayVar(&rules, "rule", nil, "one rule; may be given again, in the order they are to be tried")
	cmd.Flags().StringVar(&otherwise, "default", "deny", "what no --rule matches: allow or deny")
	complete(cmd, "default", "allow", "deny")
	return cmd
}

// policy is what the flags say.
func (c *command) policy(file string, rules []string, otherwise string) (p acl.Policy, err error) {
	if file != "" {
		return c.policyFile(file)
	}
	if err := p.Default.UnmarshalText([]byte(otherwise)); err != nil {
		return p, usageError{fmt.Errorf("--default: %w", err)}
	}
	for _, text := range rules {
		r, err := acl.ParseRule(text)
		if err != nil {
			return p, usageError{fmt.Errorf("--rule %q: %w", text, err)}
		}
		p.Rules = append(p.Rules, r)
	}
	return p, nil
}

func (c *command) policyFile(file string) (acl.Policy, error) {
	name, in := "stdin", c.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return acl.Policy{}, usageError{fmt.Errorf("read the rules: %w: name a file that can be read", err)}
		}
		defer f.Close()
		name, in = file, f
	}
	text, err := io.ReadAll(io.LimitReader(in, config.MaxDocument))
	if err != nil {
		return acl.Policy{}, usageError{fmt.Errorf("read the rules: %w", err)}
	}
	p, err := acl.ParsePolicy(string(text))
	if err != nil {
		return p, misread(name, err)
	}
	return p, nil
}

// misread makes of an error of package acl one with file:line:column, as those of configurations are.
func misread(file string, err error) error {
	all := []error{err}
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		all = several.Unwrap()
	}
	e := &config.Error{File: file}
	for _, err := range all {
		var syntax *acl.SyntaxError
		if !errors.As(err, &syntax) {
			return usageError{err}
		}
		e.Problems = append(e.Problems, config.Problem{Line: syntax.Line, Column: syntax.Column, Reason: syntax.Reason})
	}
	return e
}

func (c *command) aclRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove PORT", Short: "Take a port's rules away, so that everything may pass", Args: cobra.ExactArgs(1),
		ValidArgsFunction: c.names(control.KindPort),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *api.Client) error {
				return c.changed(client.DeleteACL(ctx, args[0]))
			})
		},
	}
}

func (c *command) aclTest() *cobra.Command {
	var file, direction, packet string
	cmd := &cobra.Command{
		Use: "test (PORT | -f FILE) --direction in|out --packet PACKET", Short: "Tell whether a packet would pass, and by which rule",
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: c.names(control.KindPort),
		Long: "test tells whether a packet would pass by a port's rules, or by those of a file before they are in force. PACKET is written as\n\n" +
			"  tcp 10.0.0.1:1234 > 10.0.0.2:80      udp [fd00::1]:1234 > [fd00::2]:53\n" +
			"  icmp 10.0.0.1 > 10.0.0.2 type 8      proto 47 10.0.0.1 > 10.0.0.2\n" +
			"  tcp 10.0.0.1 > 10.0.0.2 fragment     arp      ether 0x88cc",
		RunE: func(cmd *cobra.Command, args []string) error {
			var d acl.Direction
			if err := d.UnmarshalText([]byte(direction)); err != nil {
				return usageError{fmt.Errorf("--direction: %w", err)}
			}
			t, err := acl.ParseTuple(packet)
			switch {
			case err != nil:
				return usageError{fmt.Errorf("--packet: %w", err)}
			case (len(args) == 1) == (file != ""):
				return usageError{errors.New("test what? name a port, or a file with -f")}
			case file != "":
				policy, err := c.policyFile(file)
				if err != nil {
					return err
				}
				return c.printTest(control.ACLTest{Direction: d, Packet: t.String(), Judged: true, Explanation: acl.Explain(policy, &t, d)})
			}
			return c.with(cmd, func(ctx context.Context, client *api.Client) error {
				answer, err := client.TestACL(ctx, args[0], d, t)
				if err != nil {
					return err
				}
				return c.printTest(answer)
			})
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "file of rules to ask in place of a port's; - is the standard input")
	cmd.Flags().StringVar(&direction, "direction", "", "in (to the guest) or out (from it)")
	cmd.Flags().StringVar(&packet, "packet", "", "the packet, as tcp 10.0.0.1:1234 > 10.0.0.2:80")
	complete(cmd, "direction", "in", "out")
	return cmd
}

func (c *command) printTest(a control.ACLTest) error {
	return c.print(a, func(t *table) {
		t.line("%s %s", a.Direction, a.Packet)
		verb := map[acl.Verdict]string{acl.Allow: "allowed", acl.Deny: "denied"}[a.Verdict]
		t.line("%s: %s", verb, because(a))
		if a.Answers != nil {
			t.line("but allowed while it answers: %s %s, allowed %s", a.Answers.Direction, a.Answers.Packet, by(a.Answers.Rule, a.Answers.Text))
		}
	})
}

// because says why a packet is allowed or denied.
func because(a control.ACLTest) string {
	if !a.Judged {
		return "port " + a.Port + " has no ACL"
	}
	return by(a.Rule, a.Text)
}

func by(rule int, text string) string {
	switch rule {
	case acl.Default:
		return "by the default, since no rule matches"
	case acl.Always:
		return "always, as ARP, RARP and IPv6 neighbour discovery are"
	}
	return fmt.Sprintf("by rule %d, %s", rule, text)
}

// complete offers words for a flag.
func complete(cmd *cobra.Command, flag string, words ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the caller has just made the flag
	}
}
