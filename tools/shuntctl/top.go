package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
)

func (c *command) top() *cobra.Command {
	every := interval(time.Second)
	order := sortName
	cmd := &cobra.Command{
		Use: "top", Short: "Watch workers, ports, uplinks, volumes and drops, live", Args: cobra.NoArgs,
		Long: "top shows what workers, ports, uplinks and volumes do in a second, and what is dropped and why. RX came into the engine, TX left it.\n" +
			"On a terminal it is live, with keys to sort (? shows them); elsewhere it writes a table for each interval.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.output == "json" {
				return usageError{errors.New("top is for people: programs take stats --watch -o json")}
			}
			return c.with(cmd, func(ctx context.Context, client *api.Client) error {
				view := newTopView(order, time.Duration(every))
				if isTerminal(c.out) && isTerminal(os.Stdin) {
					return c.runTop(ctx, client, view)
				}
				return c.listTop(ctx, client, view)
			})
		},
	}
	cmd.Flags().VarP(&every, "interval", "i", "how often to look")
	cmd.Flags().Var(&order, "sort", "name, rx, tx, bits or drops")
	return cmd
}

// look asks the daemon for what one picture needs.
func look(ctx context.Context, client *api.Client) (s snapshot, err error) {
	if s.status, err = client.Status(ctx); err != nil {
		return s, err
	}
	s.stats, err = client.Stats(ctx, "")
	return s, err
}

// snapshot is what the daemon said at one moment.
type snapshot struct {
	status control.Status
	stats  control.Stats
}

// listTop writes one table after the other.
func (c *command) listTop(ctx context.Context, client *api.Client, view *topView) error {
	tick := time.NewTicker(view.every)
	defer tick.Stop()
	for turn := 0; ; turn++ {
		s, err := look(ctx, client)
		switch {
		case ctx.Err() != nil:
			return nil // that is how it ends
		case err != nil:
			return err
		}
		if view.update(s); turn > 0 {
			if _, err := fmt.Fprintln(c.out, view.text(120, 0)); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// runTop is the live view.
func (c *command) runTop(ctx context.Context, client *api.Client, view *topView) error {
	m := &topModel{topView: view, ctx: ctx, client: client, width: 80, height: 24}
	p := tea.NewProgram(m, tea.WithContext(ctx), tea.WithOutput(c.out), tea.WithInput(os.Stdin))
	_, err := p.Run()
	if ctx.Err() != nil || errors.Is(err, tea.ErrInterrupted) {
		return nil // that is how it ends
	}
	return err
}

// topModel is the live view as bubbletea drives it: messages come in one after the other, a picture goes out.
type topModel struct {
	*topView
	ctx           context.Context
	client        *api.Client
	width, height int
	paused        bool
	turn          int // the timer that counts; older ones are those before a change of the interval
}

// arrived is a message: what the daemon said.
type arrived struct {
	snapshot snapshot
	err      error
	turn     int
}

// due is a message: it is time to ask again.
type due struct{ turn int }

// Init asks for the first snapshot.
func (m *topModel) Init() tea.Cmd { return m.ask() }

func (m *topModel) ask() tea.Cmd {
	turn := m.turn
	return func() tea.Msg {
		ctx, cancel := context.WithTimeout(m.ctx, 10*time.Second)
		defer cancel()
		s, err := look(ctx, m.client)
		return arrived{s, err, turn}
	}
}

func (m *topModel) wait() tea.Cmd {
	turn := m.turn
	return tea.Tick(m.every, func(time.Time) tea.Msg { return due{turn} })
}

// Update takes one message.
func (m *topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case arrived:
		if m.problem = msg.err; msg.err == nil && !m.paused {
			m.update(msg.snapshot)
		}
		if msg.turn == m.turn {
			return m, m.wait()
		}
	case due:
		if msg.turn == m.turn {
			return m, m.ask()
		}
	case tea.KeyPressMsg:
		return m, m.key(msg.String())
	}
	return m, nil
}

// key does what a key means.
func (m *topModel) key(key string) tea.Cmd {
	switch key {
	case "q", "esc", "ctrl+c":
		return tea.Quit
	case "n":
		m.order = sortName
	case "r":
		m.order = sortReceived
	case "t":
		m.order = sortTransmitted
	case "b":
		m.order = sortBits
	case "d":
		m.order = sortDrops
	case "up", "k":
		m.scroll--
	case "down", "j":
		m.scroll++
	case "pgup":
		m.scroll -= 10
	case "pgdown":
		m.scroll += 10
	case "home":
		m.scroll = 0
	case "?", "h":
		m.help = !m.help
	case "space", "p":
		m.paused = !m.paused
	case "+", "=":
		return m.hurry(m.every / 2)
	case "-":
		return m.hurry(m.every * 2)
	}
	m.note = ""
	if m.paused {
		m.note = "paused"
	}
	return nil
}

// hurry changes the interval.
func (m *topModel) hurry(every time.Duration) tea.Cmd {
	m.every = min(max(every, time.Duration(leastInterval)), time.Minute)
	m.turn++
	return m.wait()
}

// View is the picture.
func (m *topModel) View() tea.View {
	v := tea.NewView(m.text(m.width, m.height))
	v.AltScreen = true
	v.WindowTitle = "shuntctl top"
	return v
}
